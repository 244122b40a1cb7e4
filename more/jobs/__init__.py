"""Work in pieces over processes that may die: the one layer for refine, tune and converters."""
