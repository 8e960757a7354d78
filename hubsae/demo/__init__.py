"""Two tiny language models of an invented world, and the grammar that they learned."""
