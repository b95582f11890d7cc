"""The tables of responses, in the database of files and batches."""

from __future__ import annotations

TABLES = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL,
    created INTEGER NOT NULL, used INTEGER NOT NULL,    -- Unix time; used: gone on from, at last
    status TEXT NOT NULL, background INTEGER NOT NULL, previous TEXT,
    head TEXT NOT NULL, output TEXT NOT NULL,    -- JSON: the body without its output; that
    items TEXT NOT NULL,    -- JSON: the input
    request TEXT,    -- what is to be answered, until it is
    starts INTEGER NOT NULL DEFAULT 0,    -- how often a router has begun to answer it
    size INTEGER NOT NULL
);
CREATE INDEX responses_by_use ON responses (owner, used) WHERE request IS NULL;
CREATE INDEX responses_by_age ON responses (created) WHERE request IS NULL;
CREATE INDEX unfinished_responses ON responses (owner, created) WHERE request IS NOT NULL;
CREATE TABLE response_sums (
    owner TEXT PRIMARY KEY, count INTEGER NOT NULL, bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER response_added AFTER INSERT ON responses BEGIN
    INSERT INTO response_sums VALUES (NEW.owner, 1, NEW.size)
    ON CONFLICT DO UPDATE SET count = count + 1, bytes = bytes + NEW.size;
END;
CREATE TRIGGER response_removed AFTER DELETE ON responses BEGIN
    UPDATE response_sums SET count = count - 1, bytes = bytes - OLD.size WHERE owner = OLD.owner;
    DELETE FROM response_sums WHERE owner = OLD.owner AND count = 0;
END;
CREATE TRIGGER response_resized AFTER UPDATE OF size ON responses BEGIN
    UPDATE response_sums SET bytes = bytes + NEW.size - OLD.size WHERE owner = NEW.owner;
END;
"""
"""Sums are kept by triggers: whatever changes a row, they hold."""
