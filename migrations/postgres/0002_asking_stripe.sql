-- Numbers in the order in which they were given out. A row that is counted up would be locked until its transaction ends, and whoever
-- asks for a number would wait for whoever has one.
CREATE SEQUENCE ticket_numbers AS BIGINT;

CREATE TABLE requests (
    subject       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    kind          TEXT   NOT NULL CHECK (kind IN ('customer', 'subscription')),
    requested_seq BIGINT NOT NULL,
    applied_seq   BIGINT NOT NULL DEFAULT 0,
    tries         BIGINT NOT NULL DEFAULT 0,
    -- A node that asks puts it off: if the node dies, another one asks then.
    due_at        BIGINT,
    given_up_at   BIGINT,
    error         TEXT
);

CREATE INDEX requests_due ON requests (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX requests_given_up ON requests (given_up_at) WHERE given_up_at IS NOT NULL;

ALTER TABLE inbox ADD COLUMN requested_seq BIGINT;

CREATE INDEX inbox_awaiting ON inbox (customer, requested_seq) WHERE requested_seq IS NOT NULL;

CREATE TABLE reconciliation (
    "only"          BIGINT NOT NULL PRIMARY KEY CHECK ("only" = 1),
    run           BIGINT NOT NULL,
    phase         TEXT   NOT NULL,
    place         TEXT,
    events_since  BIGINT,
    started_at    BIGINT NOT NULL,
    finished_at   BIGINT,
    checked       BIGINT NOT NULL DEFAULT 0,
    drifted       BIGINT NOT NULL DEFAULT 0,
    missed_events BIGINT NOT NULL DEFAULT 0,
    drift         TEXT   NOT NULL DEFAULT '[]'
);

ALTER TABLE customers ADD COLUMN reconciled_in BIGINT NOT NULL DEFAULT 0;
