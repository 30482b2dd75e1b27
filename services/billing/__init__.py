"""Money of the mesh: prepaid credit, holds for predictions, captures and releases.

Owns the tables ledger_entries and ledger_postings. Answers LedgerService and PriceService over
gRPC; takes and sends no events: callers hold and settle by calls that are safe to repeat.
"""
