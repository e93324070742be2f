-- Tokens of other kinds than input and output, and the prices that were applied, as a JSON object.
ALTER TABLE usage ADD COLUMN detail TEXT;

-- A model that costs nothing is held for nothing. SQLite keeps a table's checks as they were made, so the table is made again.
CREATE TABLE holds_anew (
    seq             INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id              TEXT    NOT NULL UNIQUE,
    user_id         TEXT    NOT NULL,
    account_id      TEXT,
    amount          INTEGER NOT NULL CHECK (0 <= amount),
    model           TEXT,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    fingerprint     BLOB    NOT NULL,
    -- When it was captured or released.
    ended_at        INTEGER,
    -- The actual cost, where it was captured.
    captured        INTEGER,
    end_fingerprint BLOB,
    -- What was answered when it was admitted.
    answer          TEXT    NOT NULL,
    -- Whom the caller named with the model.
    provider        TEXT
) STRICT;

INSERT INTO holds_anew SELECT *, NULL FROM holds;
-- Numbers go on where they were, also where the last rows are gone.
DELETE FROM sqlite_sequence WHERE name = 'holds_anew';
INSERT INTO sqlite_sequence (name, seq) SELECT 'holds_anew', seq FROM sqlite_sequence WHERE name = 'holds';
DROP TABLE holds;
ALTER TABLE holds_anew RENAME TO holds;

CREATE INDEX holds_by_user ON holds (user_id, expires_at) WHERE ended_at IS NULL;
CREATE INDEX holds_by_account ON holds (account_id, expires_at) WHERE ended_at IS NULL AND account_id IS NOT NULL;
CREATE INDEX holds_open ON holds (expires_at) WHERE ended_at IS NULL;
