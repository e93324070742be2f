-- Batches of the ledger are durable in a journal beside this file; the tables follow in bulk. This is the last batch that they have.
CREATE TABLE settled (
    only    INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    through INTEGER NOT NULL
) STRICT;

INSERT INTO settled (only, through) VALUES (1, 0);

DROP VIEW ledger_batch;
