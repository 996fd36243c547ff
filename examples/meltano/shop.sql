CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL);
CREATE TABLE customers (id int PRIMARY KEY, name text);
INSERT INTO orders SELECT i, i * 1.5 FROM generate_series(1, 500) i;
INSERT INTO customers VALUES (1, 'Ada'), (2, 'Bo');
CREATE PUBLICATION shop_pub FOR TABLE orders, customers;
