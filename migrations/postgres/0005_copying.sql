CREATE TABLE copying (
    "only"      BIGINT NOT NULL PRIMARY KEY CHECK ("only" = 1),
    source      TEXT   NOT NULL,
    origin      TEXT   NOT NULL,
    table_name  TEXT   NOT NULL,
    place       TEXT,
    copied      BIGINT NOT NULL,
    started_at  BIGINT NOT NULL,
    finished_at BIGINT
);

CREATE TABLE copy_source (
    "only" BIGINT NOT NULL PRIMARY KEY CHECK ("only" = 1),
    id     TEXT   NOT NULL
);
