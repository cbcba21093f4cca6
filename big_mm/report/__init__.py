"""What a run reached, for people: one self-contained page, and a table for the terminal."""

from big_mm.report.page import write
from big_mm.report.table import EVALUATION, Row, headline, print_table, rows

__all__ = ["EVALUATION", "Row", "headline", "print_table", "rows", "write"]
