-- What one node at a time does, and until when it may: who does not renew it in time loses it to another one.
CREATE TABLE leases (
    name       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    holder     TEXT NOT NULL,
    held_until BIGINT NOT NULL
);

-- Goes up with every change of what a user or an account has spent or holds, or of what else stands in its row: a node believes what it
-- remembers as long as this is the same. Where one process has the database to itself only changes by hand count here.
ALTER TABLE users ADD COLUMN version BIGINT NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN version BIGINT NOT NULL DEFAULT 0;

-- Ends a statement that found something else than it expected, before it changes anything.
CREATE FUNCTION conflict() RETURNS BOOLEAN LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'another node was in the way' USING ERRCODE = 'serialization_failure'; END $$;
