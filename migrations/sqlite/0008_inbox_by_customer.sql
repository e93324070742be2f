-- The latest event of a customer, however many others came since.
CREATE INDEX inbox_by_customer ON inbox (customer, seq) WHERE customer IS NOT NULL;
