-- With an API key an event is only a nudge: Stripe itself is asked about the customer, and its answer is what counts.

-- Numbers in the order in which they were given out. A nudge takes one, and so does each question before it is sent: an answer holds
-- everything that was requested under a smaller number than its own.
CREATE TABLE tickets (
    only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    last INTEGER NOT NULL
) STRICT;

INSERT INTO tickets (only, last) VALUES (1, 0);

-- What Stripe was asked about, or is to be.
CREATE TABLE requests (
    -- A customer; or a subscription, of which only Stripe knows whose it is.
    subject       TEXT    NOT NULL PRIMARY KEY,
    kind          TEXT    NOT NULL CHECK (kind IN ('customer', 'subscription')),
    -- The latest nudge, and the question whose answer we have.
    requested_seq INTEGER NOT NULL,
    applied_seq   INTEGER NOT NULL DEFAULT 0,
    -- Questions in a row that failed.
    tries         INTEGER NOT NULL DEFAULT 0,
    -- When to ask; NULL where there is nothing to ask, or where it was given up.
    due_at        INTEGER,
    given_up_at   INTEGER,
    -- Why the last question failed.
    error         TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX requests_due ON requests (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX requests_given_up ON requests (given_up_at) WHERE given_up_at IS NOT NULL;

-- The nudge that the event made, while its answer is awaited.
ALTER TABLE inbox ADD COLUMN requested_seq INTEGER;

CREATE INDEX inbox_awaiting ON inbox (customer, requested_seq) WHERE requested_seq IS NOT NULL;

-- The last reconciliation: how far it came, and what it found.
CREATE TABLE reconciliation (
    only          INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    -- What marks the customers that it has met.
    run           INTEGER NOT NULL,
    -- subscriptions, customers, ours, events, done
    phase         TEXT    NOT NULL,
    -- Where in the phase it is.
    place         TEXT,
    -- Events from here on are looked for.
    events_since  INTEGER,
    started_at    INTEGER NOT NULL,
    finished_at   INTEGER,
    checked       INTEGER NOT NULL DEFAULT 0,
    drifted       INTEGER NOT NULL DEFAULT 0,
    missed_events INTEGER NOT NULL DEFAULT 0,
    -- A JSON list of {customer, what}: the first of what differed.
    drift         TEXT    NOT NULL DEFAULT '[]'
) STRICT;

-- The last reconciliation that met the customer.
ALTER TABLE customers ADD COLUMN reconciled_in INTEGER NOT NULL DEFAULT 0;
