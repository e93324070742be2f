-- A database that is made by `spendgate copy`: how far the copy came. It is written in the transaction that writes the rows.
CREATE TABLE copying (
    only        INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    -- The id of the database that is copied, as it stood.
    source      TEXT    NOT NULL,
    -- Where that is, for people.
    origin      TEXT    NOT NULL,
    -- The table that is copied now, and the key of its last row that is here, as a JSON list.
    table_name  TEXT    NOT NULL,
    place       TEXT,
    -- Rows of all tables that are here.
    copied      INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    -- When all was here, once both sides were found to be the same; until then no service starts here.
    finished_at INTEGER
) STRICT;

-- A database that is copied: its id. A service that starts forgets it, so it stands for what the tables had when the copy began.
CREATE TABLE copy_source (
    only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    id   TEXT    NOT NULL
) STRICT;
