CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (
    id int PRIMARY KEY,
    customer_id int NOT NULL REFERENCES customers,
    cents bigint NOT NULL
);
CREATE TABLE tickets (
    id int PRIMARY KEY,
    customer_id int NOT NULL,
    subject text NOT NULL,
    is_closed boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE orders IS 'What customers bought.';

INSERT INTO customers VALUES (1, 'Ada'), (2, 'Grace'), (3, 'Edsger');
INSERT INTO orders SELECT i, 1 + i % 3, 100 * i FROM generate_series(1, 300) i;
INSERT INTO tickets VALUES (1, 1, 'Where is my parcel?', false), (2, 3, 'Thank you', true);

CREATE PUBLICATION shop_pub FOR TABLE customers, orders;
CREATE PUBLICATION support_pub FOR TABLE tickets;
