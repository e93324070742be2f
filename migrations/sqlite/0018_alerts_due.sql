-- What is due at one endpoint: with an index by time alone, what waits for others is gone through as well.
CREATE INDEX deliveries_due_by_endpoint ON deliveries (endpoint, due_at) WHERE due_at IS NOT NULL;
DROP INDEX deliveries_due;
