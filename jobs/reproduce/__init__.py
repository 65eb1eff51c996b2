"""The papers' figures and tables, reproduced."""
