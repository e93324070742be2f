ALTER TABLE usage ADD COLUMN detail TEXT;

ALTER TABLE holds DROP CONSTRAINT holds_amount_check;
ALTER TABLE holds ADD CONSTRAINT holds_amount_check CHECK (0 <= amount) NOT VALID;
ALTER TABLE holds ADD COLUMN provider TEXT COLLATE "C";
