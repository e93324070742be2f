-- Lists of Stripe's that a comparison could not read to their end, as JSON, and how many objects of the others it could not read.
ALTER TABLE reconciliation ADD COLUMN faults TEXT NOT NULL DEFAULT '[]';
ALTER TABLE reconciliation ADD COLUMN unread BIGINT NOT NULL DEFAULT 0;
