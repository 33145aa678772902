"""Research: named runs that are trained once, resumed where they stopped, and kept as rows of CSV files."""
