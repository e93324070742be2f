-- What somebody is to be told, once each.
CREATE TABLE outbox (
    -- A digest of what makes it one (alert_key), so that all nodes name it alike.
    alert_id   TEXT    NOT NULL,
    alert_key  TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    -- Whom it is about; NULL where it is about no one user.
    user_id    TEXT,
    message    TEXT    NOT NULL,
    -- A JSON object.
    details    TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    -- When it was given out to the endpoints of that time; NULL until then.
    spread_at  INTEGER,
    PRIMARY KEY (alert_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_by_time ON outbox (created_at, alert_id);
CREATE INDEX outbox_to_spread ON outbox (created_at) WHERE spread_at IS NULL;

-- Each alert's way to each endpoint.
CREATE TABLE deliveries (
    alert_id   TEXT    NOT NULL,
    -- What the operator named it, never its URL, which may hold a secret.
    endpoint   TEXT    NOT NULL,
    tries      INTEGER NOT NULL DEFAULT 0,
    -- When it is tried next; NULL once it is delivered or parked.
    due_at     INTEGER,
    delivered_at INTEGER,
    -- Given up: tried for as long as it is tried.
    parked_at  INTEGER,
    -- Why the last try failed.
    error      TEXT,
    PRIMARY KEY (alert_id, endpoint)
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;
