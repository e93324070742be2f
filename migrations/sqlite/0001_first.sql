-- Amounts are whole nano-dollars, times are microseconds since 1970-01-01 UTC, days are days since then.

CREATE TABLE users (
    user_id        TEXT    NOT NULL PRIMARY KEY,
    -- Whom Stripe bills. A user without an account of several users stands alone: it is his own id.
    account_id     TEXT    NOT NULL,
    created_at     INTEGER NOT NULL,
    -- The sums of all his usage, ever.
    spent          INTEGER NOT NULL DEFAULT 0,
    entries        INTEGER NOT NULL DEFAULT 0,
    manual_tier    TEXT,
    manual_reason  TEXT,
    manual_set_at  INTEGER,
    manual_ends_at INTEGER
) STRICT, WITHOUT ROWID;

-- One Stripe customer each, as far as events told; kept also while nobody is bound to it.
CREATE TABLE customers (
    customer   TEXT    NOT NULL PRIMARY KEY,
    account_id TEXT UNIQUE,
    -- The JSON of domain::subscription::Customer.
    state      TEXT    NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (
    seq           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- The caller's; a capture's is its hold's.
    id            TEXT    NOT NULL,
    -- usage, capture, or correction, whose cost counts downwards.
    kind          TEXT    NOT NULL,
    user_id       TEXT    NOT NULL,
    cost          INTEGER NOT NULL CHECK (0 <= cost),
    happened_at   INTEGER NOT NULL,
    recorded_at   INTEGER NOT NULL,
    model         TEXT,
    provider      TEXT,
    input_tokens  INTEGER,
    output_tokens INTEGER,
    metadata      TEXT,
    -- What makes two bodies under one id the same body.
    fingerprint   BLOB    NOT NULL,
    UNIQUE (id, kind)
) STRICT;

CREATE INDEX usage_by_user ON usage (user_id, happened_at, seq);

-- Cost that was promised to calls. One that has expired ends by the clock, not by a row.
CREATE TABLE holds (
    seq             INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id              TEXT    NOT NULL UNIQUE,
    user_id         TEXT    NOT NULL,
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
    user_id TEXT    NOT NULL,
    change  TEXT    NOT NULL,
    reason  TEXT
) STRICT;

CREATE INDEX audit_by_user ON audit (user_id, seq);

-- A batch of the ledger, written by one statement: each column is a JSON list of rows. What costs is a statement's way to the
-- database and back, so one INSERT into this view does what six statements and a transaction would. It is atomic by itself.
CREATE VIEW ledger_batch AS
SELECT '' AS entries, '' AS days, '' AS days_of_all, '' AS users, '' AS holds, '' AS audits, 0 AS now WHERE false;

CREATE TRIGGER ledger_batch_insert INSTEAD OF INSERT ON ledger_batch
BEGIN
    INSERT INTO usage (id, kind, user_id, cost, happened_at, recorded_at, model, provider, input_tokens, output_tokens, metadata, fingerprint)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9,
        value ->> 10, unhex(value ->> 11)
    FROM json_each(NEW.entries);

    INSERT INTO spend_by_day (user_id, day, model, spent, entries, input_tokens, output_tokens)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6 FROM json_each(NEW.days) WHERE true
    ON CONFLICT (user_id, day, model) DO UPDATE SET spent = spent + excluded.spent, entries = entries + excluded.entries,
        input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens;

    -- The sum of all users stops at the most that can be counted.
    INSERT INTO spend_by_day_of_all (day, spent, entries)
    SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(NEW.days_of_all) WHERE true
    ON CONFLICT (day) DO UPDATE SET spent = MAX(0, spent + MIN(excluded.spent, 9223372036854775807 - spent)), entries = entries + excluded.entries;

    INSERT INTO users (user_id, account_id, created_at, spent, entries)
    SELECT value ->> 0, value ->> 0, NEW.now, value ->> 1, value ->> 2 FROM json_each(NEW.users) WHERE true
    ON CONFLICT (user_id) DO UPDATE SET spent = spent + excluded.spent, entries = entries + excluded.entries;

    -- A hold that has ended stays as it ended.
    INSERT INTO holds (id, user_id, amount, model, created_at, expires_at, fingerprint, ended_at, captured, end_fingerprint, answer)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, unhex(value ->> 6), value ->> 7, value ->> 8,
        unhex(value ->> 9), value ->> 10
    FROM json_each(NEW.holds) WHERE true
    ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at, ended_at = excluded.ended_at, captured = excluded.captured,
        end_fingerprint = excluded.end_fingerprint WHERE holds.ended_at IS NULL;

    INSERT INTO audit (at, key_id, user_id, change, reason)
    SELECT NEW.now, value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(NEW.audits);
END;
