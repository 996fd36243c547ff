"""What destinations have in common that are written in SQL, inside of transactions."""
