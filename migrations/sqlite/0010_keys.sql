-- Keys that end by themselves, and keys that were replaced.
-- Refused from this moment on; NULL is never.
ALTER TABLE api_keys ADD COLUMN expires_at INTEGER;
-- Written in the background, so up to a minute behind; NULL: never used.
ALTER TABLE api_keys ADD COLUMN last_used_at INTEGER;
-- The key that took its place.
ALTER TABLE api_keys ADD COLUMN successor TEXT;
