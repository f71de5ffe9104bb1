"""Windows of live traffic, as they are kept: counts by bundle and hour, and how far was counted."""

SCHEMA = """
CREATE TABLE drift_windows(
    bundle TEXT NOT NULL, start INTEGER NOT NULL, rows INTEGER NOT NULL, counts BLOB NOT NULL,
    PRIMARY KEY (bundle, start)) WITHOUT ROWID;
CREATE TABLE drift_counted(
    only INTEGER PRIMARY KEY CHECK (only = 1), last_id INTEGER NOT NULL);
INSERT INTO drift_counted VALUES (1, 0);
"""
