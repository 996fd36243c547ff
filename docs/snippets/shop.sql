CREATE TABLE orders (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item   text NOT NULL,
    amount numeric(10, 2) NOT NULL
);
INSERT INTO orders (item, amount)
    SELECT 'item ' || n, n * 0.25 FROM generate_series(1, 20000) AS n;
CREATE PUBLICATION tutorial FOR TABLE orders;
