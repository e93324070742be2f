CREATE TABLE outbox (
    alert_id   TEXT COLLATE "C" NOT NULL,
    alert_key  TEXT   NOT NULL,
    kind       TEXT   NOT NULL,
    user_id    TEXT COLLATE "C",
    message    TEXT   NOT NULL,
    details    TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    spread_at  BIGINT,
    PRIMARY KEY (alert_id)
);
CREATE INDEX outbox_by_time ON outbox (created_at, alert_id);
CREATE INDEX outbox_to_spread ON outbox (created_at) WHERE spread_at IS NULL;

CREATE TABLE deliveries (
    alert_id   TEXT COLLATE "C" NOT NULL,
    endpoint   TEXT COLLATE "C" NOT NULL,
    tries      BIGINT NOT NULL DEFAULT 0,
    due_at     BIGINT,
    delivered_at BIGINT,
    parked_at  BIGINT,
    error      TEXT,
    PRIMARY KEY (alert_id, endpoint)
) WITH (fillfactor = 70);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;
