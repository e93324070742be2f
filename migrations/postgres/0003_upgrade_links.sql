CREATE TABLE upgrade_links (
    "only"   BIGINT NOT NULL PRIMARY KEY CHECK ("only" = 1),
    secret BYTEA  NOT NULL CHECK (length(secret) = 32)
);
