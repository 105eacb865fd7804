"""All SQL. Only here (and in the embedded server) is asyncpg known."""
