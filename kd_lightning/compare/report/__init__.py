"""Statistics, tables, conclusions and curves of finished runs."""
