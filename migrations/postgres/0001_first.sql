-- The same names and columns as in migrations/sqlite, which says what each is for. Here stands what is otherwise.

-- Ids are compared byte for byte and listed in the order of their bytes.

CREATE TABLE users (
    user_id        TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    account_id     TEXT COLLATE "C",
    created_at     BIGINT NOT NULL,
    spent          BIGINT NOT NULL DEFAULT 0,
    entries        BIGINT NOT NULL DEFAULT 0,
    manual_tier    TEXT,
    manual_reason  TEXT,
    manual_set_at  BIGINT,
    manual_ends_at BIGINT
) WITH (fillfactor = 70);

CREATE INDEX users_by_account ON users (account_id, user_id) WHERE account_id IS NOT NULL;

CREATE TABLE accounts (
    account_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE customers (
    customer   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    account_id TEXT COLLATE "C" UNIQUE,
    user_id    TEXT COLLATE "C" UNIQUE,
    state      TEXT   NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE usage (
    seq           BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 100),
    id            TEXT COLLATE "C" NOT NULL,
    id_hash       BIGINT NOT NULL,
    kind          TEXT COLLATE "C" NOT NULL,
    user_id       TEXT COLLATE "C" NOT NULL,
    account_id    TEXT COLLATE "C",
    cost          BIGINT NOT NULL CHECK (0 <= cost),
    happened_at   BIGINT NOT NULL,
    recorded_at   BIGINT NOT NULL,
    model         TEXT COLLATE "C",
    provider      TEXT,
    input_tokens  BIGINT,
    output_tokens BIGINT,
    metadata      TEXT,
    fingerprint   BYTEA NOT NULL
);

-- Two nodes that book the same id at once: the second one finds the first one's row.
CREATE UNIQUE INDEX usage_by_id ON usage (id_hash, kind, id);

CREATE INDEX usage_by_user ON usage (user_id, happened_at, seq);
CREATE INDEX usage_by_account ON usage (account_id, happened_at) WHERE account_id IS NOT NULL;
-- Rows come in the order of this time, near enough; so it costs almost nothing.
CREATE INDEX usage_by_age ON usage USING brin (recorded_at);

CREATE TABLE rolled (
    user_id       TEXT COLLATE "C" NOT NULL,
    account_id    TEXT COLLATE "C" NOT NULL,
    day           BIGINT NOT NULL,
    model         TEXT COLLATE "C" NOT NULL,
    spent         BIGINT NOT NULL,
    entries       BIGINT NOT NULL,
    input_tokens  BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    PRIMARY KEY (user_id, account_id, day, model)
);

CREATE VIEW counted_rows AS
SELECT seq, recorded_at, user_id, account_id, happened_at / 86400000000 AS day, COALESCE(model, '') AS model,
    CASE WHEN kind = 'correction' THEN -cost ELSE cost END AS spent, CAST(1 AS BIGINT) AS entries,
    COALESCE(input_tokens, 0) AS input_tokens, COALESCE(output_tokens, 0) AS output_tokens
FROM usage;

CREATE TABLE holds (
    seq             BIGINT GENERATED ALWAYS AS IDENTITY,
    id              TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    user_id         TEXT COLLATE "C" NOT NULL,
    account_id      TEXT COLLATE "C",
    amount          BIGINT NOT NULL CHECK (0 < amount),
    model           TEXT COLLATE "C",
    created_at      BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    fingerprint     BYTEA NOT NULL,
    ended_at        BIGINT,
    captured        BIGINT,
    end_fingerprint BYTEA,
    answer          TEXT NOT NULL
);

CREATE INDEX holds_by_seq ON holds (seq);
CREATE INDEX holds_by_user ON holds (user_id, expires_at) WHERE ended_at IS NULL;
CREATE INDEX holds_by_account ON holds (account_id, expires_at) WHERE ended_at IS NULL AND account_id IS NOT NULL;
CREATE INDEX holds_open ON holds (expires_at) INCLUDE (amount) WHERE ended_at IS NULL;

CREATE TABLE spend_by_day (
    user_id       TEXT COLLATE "C" NOT NULL,
    day           BIGINT NOT NULL,
    model         TEXT COLLATE "C" NOT NULL,
    spent         BIGINT NOT NULL,
    entries       BIGINT NOT NULL,
    input_tokens  BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    PRIMARY KEY (user_id, day, model)
) WITH (fillfactor = 70);

CREATE TABLE spend_by_day_of_account (
    account_id TEXT COLLATE "C" NOT NULL,
    day        BIGINT NOT NULL,
    spent      BIGINT NOT NULL,
    entries    BIGINT NOT NULL,
    PRIMARY KEY (account_id, day)
) WITH (fillfactor = 70);

-- One row would make all nodes commit one after the other, so each day has several, and whoever commits takes any.
CREATE TABLE spend_by_day_of_all (
    day     BIGINT NOT NULL,
    slot    BIGINT NOT NULL,
    spent   BIGINT NOT NULL,
    entries BIGINT NOT NULL,
    PRIMARY KEY (day, slot)
) WITH (fillfactor = 10);

CREATE TABLE inbox (
    seq         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id    TEXT COLLATE "C" NOT NULL UNIQUE,
    kind        TEXT COLLATE "C" NOT NULL,
    customer    TEXT COLLATE "C",
    received_at BIGINT NOT NULL,
    applied_at  BIGINT NOT NULL,
    state       TEXT NOT NULL,
    effect      TEXT NOT NULL,
    alerts      TEXT NOT NULL,
    body        BYTEA NOT NULL
);

CREATE TABLE api_keys (
    key_id     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name       TEXT NOT NULL,
    digest     BYTEA NOT NULL UNIQUE,
    scopes     TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);

CREATE TABLE probe (
    "only" BIGINT NOT NULL PRIMARY KEY CHECK ("only" = 1),
    at   BIGINT NOT NULL
);

CREATE TABLE audit (
    seq        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         BIGINT NOT NULL,
    key_id     TEXT NOT NULL,
    account_id TEXT COLLATE "C",
    user_id    TEXT COLLATE "C",
    change     TEXT NOT NULL,
    reason     TEXT
);

CREATE INDEX audit_by_user ON audit (user_id, seq);

-- What SQLite has built in: the values of a JSON list, as text.
CREATE FUNCTION json_each(list TEXT) RETURNS TABLE (value TEXT)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT json_array_elements_text(CAST(list AS JSON)) $$;
