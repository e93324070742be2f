ALTER TABLE users ADD COLUMN caps TEXT;
-- Who adds usage without knowing what he adds to looks here: while a grant may be drawn on he must know.
ALTER TABLE users ADD COLUMN granted_until BIGINT;

CREATE TABLE grants (
    user_id    TEXT COLLATE "C" NOT NULL,
    grant_id   TEXT COLLATE "C" NOT NULL,
    period     TEXT   NOT NULL,
    amount     BIGINT NOT NULL CHECK (0 < amount),
    used       BIGINT NOT NULL DEFAULT 0,
    ends_at    BIGINT NOT NULL,
    reason     TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT,
    PRIMARY KEY (user_id, grant_id)
) WITH (fillfactor = 70);

CREATE TABLE draws (
    user_id      TEXT COLLATE "C" NOT NULL,
    grant_id     TEXT COLLATE "C" NOT NULL,
    window_start BIGINT NOT NULL,
    drawn        BIGINT NOT NULL,
    PRIMARY KEY (user_id, grant_id, window_start)
) WITH (fillfactor = 70);
