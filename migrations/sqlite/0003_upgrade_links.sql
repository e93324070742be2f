-- What signs the links to buy more. Made once: a link that was given out stays good over a restart.
CREATE TABLE upgrade_links (
    only   INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    secret BLOB    NOT NULL CHECK (length(secret) = 32)
) STRICT;
