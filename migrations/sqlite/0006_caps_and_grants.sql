-- A user's own caps, below whatever his tier allows: a JSON object of nano-dollars by period. NULL where he has none.
ALTER TABLE users ADD COLUMN caps TEXT;
-- When the last grant ends that he was ever given. NULL is most users, of whom no grant is ever looked for.
ALTER TABLE users ADD COLUMN granted_until INTEGER;

-- More budget for one user, once, until an end.
CREATE TABLE grants (
    user_id    TEXT    NOT NULL,
    -- The caller's; one user has it once.
    grant_id   TEXT    NOT NULL,
    -- The budget of his tier that it adds to.
    period     TEXT    NOT NULL,
    amount     INTEGER NOT NULL CHECK (0 < amount),
    -- What was drawn, never more than the amount: the sum of its rows in draws.
    used       INTEGER NOT NULL DEFAULT 0,
    ends_at    INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    -- From then on nothing more is drawn.
    revoked_at INTEGER,
    PRIMARY KEY (user_id, grant_id)
) STRICT, WITHOUT ROWID;

-- What each window of the grant's period drew on it.
CREATE TABLE draws (
    user_id      TEXT    NOT NULL,
    grant_id     TEXT    NOT NULL,
    window_start INTEGER NOT NULL,
    drawn        INTEGER NOT NULL,
    PRIMARY KEY (user_id, grant_id, window_start)
) STRICT, WITHOUT ROWID;
