DO $$
BEGIN
    FOR n IN 1..2000 LOOP
        INSERT INTO orders (item, amount) VALUES ('new ' || n, n);
        UPDATE orders SET amount = amount + 1 WHERE id = n * 3;
        DELETE FROM orders WHERE n % 2 = 0 AND id = n * 3 + 1;
        COMMIT;
        PERFORM pg_sleep(0.001);
    END LOOP;
END
$$;
