"""`python -m jaxem`: mixtures of the columns of a table, or of the embedded flights.

TABLE ── tables, text ──▶ rows, labels, bad rows ── fitting ──▶ a fit a group ── writing, report ──▶ a folder
"""
