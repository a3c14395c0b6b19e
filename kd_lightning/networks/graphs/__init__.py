"""Networks that classify the nodes of a graph."""
