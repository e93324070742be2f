-- Amounts are whole nano-dollars, times are microseconds since 1970-01-01 UTC, days are days since then.

CREATE TABLE users (
    user_id        TEXT    NOT NULL PRIMARY KEY,
    -- The account that he belongs to; without one he stands alone.
    account_id     TEXT,
    created_at     INTEGER NOT NULL,
    -- The sums of all his usage, ever.
    spent          INTEGER NOT NULL DEFAULT 0,
    entries        INTEGER NOT NULL DEFAULT 0,
    manual_tier    TEXT,
    manual_reason  TEXT,
    manual_set_at  INTEGER,
    manual_ends_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX users_by_account ON users (account_id, user_id) WHERE account_id IS NOT NULL;

-- Whom Stripe bills for several users.
CREATE TABLE accounts (
    account_id TEXT    NOT NULL PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One Stripe customer each, as far as events told; kept also while nobody is bound to it.
CREATE TABLE customers (
    customer   TEXT    NOT NULL PRIMARY KEY,
    -- Whom it pays for: an account, or a user who stands alone; never both.
    account_id TEXT UNIQUE,
    user_id    TEXT UNIQUE,
    -- The JSON of domain::subscription::Customer.
    state      TEXT    NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (
    seq           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- The caller's; a capture's is its hold's. One id is booked once among rows of one kind.
    id            TEXT    NOT NULL,
    -- Its SipHash-1-3: an index of ids as callers make them would be four times as large, and every row touches a page of it.
    id_hash       INTEGER NOT NULL,
    -- usage, capture, or correction, whose cost counts downwards.
    kind          TEXT    NOT NULL,
    user_id       TEXT    NOT NULL,
    -- The account that he belonged to.
    account_id    TEXT,
    cost          INTEGER NOT NULL CHECK (0 <= cost),
    happened_at   INTEGER NOT NULL,
    recorded_at   INTEGER NOT NULL,
    model         TEXT,
    provider      TEXT,
    input_tokens  INTEGER,
    output_tokens INTEGER,
    metadata      TEXT,
    -- What makes two bodies under one id the same body.
    fingerprint   BLOB    NOT NULL
) STRICT;

CREATE INDEX usage_by_id ON usage (id_hash);

CREATE INDEX usage_by_user ON usage (user_id, happened_at, seq);
CREATE INDEX usage_by_account ON usage (account_id, happened_at) WHERE account_id IS NOT NULL;

-- Sums of the rows that were too old to keep (RETENTION_DAYS), so that every counter can still be recomputed.
CREATE TABLE rolled (
    user_id       TEXT    NOT NULL,
    -- Empty where he stood alone.
    account_id    TEXT    NOT NULL,
    day           INTEGER NOT NULL,
    model         TEXT    NOT NULL,
    spent         INTEGER NOT NULL,
    entries       INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    PRIMARY KEY (user_id, account_id, day, model)
) STRICT, WITHOUT ROWID;

-- Each row as it counts.
CREATE VIEW counted_rows AS
SELECT seq, recorded_at, user_id, account_id, happened_at / 86400000000 AS day, COALESCE(model, '') AS model,
    CASE WHEN kind = 'correction' THEN -cost ELSE cost END AS spent, 1 AS entries,
    COALESCE(input_tokens, 0) AS input_tokens, COALESCE(output_tokens, 0) AS output_tokens
FROM usage;

-- Cost that was promised to calls. One that has expired ends by the clock, not by a row.
CREATE TABLE holds (
    seq             INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id              TEXT    NOT NULL UNIQUE,
    user_id         TEXT    NOT NULL,
    account_id      TEXT,
    amount          INTEGER NOT NULL CHECK (0 < amount),
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
    answer          TEXT    NOT NULL
) STRICT;

CREATE INDEX holds_by_user ON holds (user_id, expires_at) WHERE ended_at IS NULL;
CREATE INDEX holds_by_account ON holds (account_id, expires_at) WHERE ended_at IS NULL AND account_id IS NOT NULL;
CREATE INDEX holds_open ON holds (expires_at) WHERE ended_at IS NULL;

CREATE TABLE spend_by_day (
    user_id       TEXT    NOT NULL,
    day           INTEGER NOT NULL,
    -- Empty where the usage named none.
    model         TEXT    NOT NULL,
    spent         INTEGER NOT NULL,
    entries       INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    PRIMARY KEY (user_id, day, model)
) STRICT, WITHOUT ROWID;

-- What users spent while they belonged to an account.
CREATE TABLE spend_by_day_of_account (
    account_id TEXT    NOT NULL,
    day        INTEGER NOT NULL,
    spent      INTEGER NOT NULL,
    entries    INTEGER NOT NULL,
    PRIMARY KEY (account_id, day)
) STRICT, WITHOUT ROWID;

-- All users together.
CREATE TABLE spend_by_day_of_all (
    day     INTEGER NOT NULL PRIMARY KEY,
    spent   INTEGER NOT NULL,
    entries INTEGER NOT NULL
) STRICT;

-- Every Stripe event that was received, once each, with its body as it came.
CREATE TABLE inbox (
    seq         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    event_id    TEXT    NOT NULL UNIQUE,
    kind        TEXT    NOT NULL,
    customer    TEXT,
    received_at INTEGER NOT NULL,
    applied_at  INTEGER NOT NULL,
    -- applied, kept, stale, noted, ignored, parked, unreadable
    state       TEXT    NOT NULL,
    -- One sentence: what it did.
    effect      TEXT    NOT NULL,
    -- A JSON list of {code, detail}: what somebody should look at.
    alerts      TEXT    NOT NULL,
    body        BLOB    NOT NULL
) STRICT;

CREATE TABLE api_keys (
    key_id     TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    digest     BLOB    NOT NULL UNIQUE,
    -- Comma-separated: check, write, admin.
    scopes     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

-- Written to see whether a write reaches the disk.
CREATE TABLE probe (
    only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    at   INTEGER NOT NULL
) STRICT;

-- What operators changed by hand.
CREATE TABLE audit (
    seq     INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    key_id  TEXT    NOT NULL,
    account_id TEXT,
    user_id TEXT,
    change  TEXT    NOT NULL,
    reason  TEXT
) STRICT;

CREATE INDEX audit_by_user ON audit (user_id, seq);

-- Batches of the ledger are durable in a journal beside this file, and the tables follow in bulk. This is the last batch that they have.
CREATE TABLE settled (
    only    INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    through INTEGER NOT NULL
) STRICT;

INSERT INTO settled (only, through) VALUES (1, 0);
