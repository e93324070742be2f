-- What one node at a time does, and until when it may: who does not renew it in time loses it to another one.
CREATE TABLE leases (
    name       TEXT NOT NULL PRIMARY KEY,
    holder     TEXT NOT NULL,
    held_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Goes up with every change of what a user or an account has spent or holds, or of what else stands in its row: a node believes what it
-- remembers as long as this is the same. Where one process has the database to itself only changes by hand count here.
ALTER TABLE users ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
