-- What somebody should look at, counted every few seconds: without these the whole inbox would be read for it.
CREATE INDEX inbox_parked ON inbox (seq) WHERE state IN ('parked', 'unreadable');
CREATE INDEX deliveries_parked ON deliveries (parked_at) WHERE parked_at IS NOT NULL;
