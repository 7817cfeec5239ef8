-- The tables of sidebike, for PostgreSQL 13 and newer. Nothing that is there is changed.
-- Records are JSON in UTF-8, to be read by convert_from(record, 'UTF8')::json.
BEGIN;
-- Servers that start at the same time make them one after the other.
SELECT pg_advisory_xact_lock(7309940);
-- Who leads: one row. Each commit of the leader begins with an update of it, and changes nothing without.
CREATE TABLE IF NOT EXISTS sb_leader (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    registry bigint NOT NULL,           -- which registry this is; never changes
    secret bytea NOT NULL,              -- known to its servers only
    version bigint NOT NULL,            -- the lowest version of a program that may read the records
    term bigint NOT NULL DEFAULT 0,     -- the number of the leader
    holder bigint,                      -- the leader; null: it has resigned
    address text,                       -- where it can be reached
    beat bigint NOT NULL DEFAULT 0,     -- the number of its last commit
    moved boolean NOT NULL DEFAULT true, -- whether the last update came with a new number
    alive bigint NOT NULL DEFAULT 0,    -- when it last committed, by its own clock, in milliseconds since 1970
    next_task bigint NOT NULL DEFAULT 0,
    next_schedule bigint NOT NULL DEFAULT 0,
    next_piece bigint NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS sb_task (
    task bigint PRIMARY KEY,
    record bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS sb_execution (
    task bigint,
    n bigint,
    record bytea NOT NULL,
    PRIMARY KEY (task, n)
);
-- Output in the pieces in which it arrived: one byte for the stream, eight for the offset, then the bytes.
CREATE TABLE IF NOT EXISTS sb_output (
    task bigint,
    n bigint,
    attempt bigint,
    piece bigint,
    data bytea NOT NULL,
    PRIMARY KEY (task, n, attempt, piece)
);
CREATE TABLE IF NOT EXISTS sb_machine (
    instance bytea PRIMARY KEY,
    record bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS sb_limit (
    name bytea PRIMARY KEY,
    record bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS sb_notification (
    number bigint PRIMARY KEY,
    record bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS sb_schedule (
    schedule bigint PRIMARY KEY,
    record bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS sb_progress (
    schedule bigint PRIMARY KEY,
    record bytea NOT NULL
);
-- What holds for the whole registry: the halt, the suspensions.
CREATE TABLE IF NOT EXISTS sb_switch (
    name bytea PRIMARY KEY,
    record bytea NOT NULL
);
-- Who is there, for people: no record, and nothing is decided by it. `tokens`, `limits`, `binaries` are proofs that two
-- servers have the same.
CREATE TABLE IF NOT EXISTS sb_server (
    address text PRIMARY KEY,
    holder bigint NOT NULL,
    version text NOT NULL,
    since timestamptz NOT NULL,
    seen timestamptz NOT NULL,
    tokens bytea NOT NULL,
    limits bytea NOT NULL,
    binaries bytea NOT NULL
);
-- The files of tasks, by their SHA-256. Their bytes are the pieces of an upload, each of 1 MiB but for the last one.
CREATE TABLE IF NOT EXISTS sb_blob (
    id bytea PRIMARY KEY,
    size bigint NOT NULL,
    name bytea NOT NULL,                -- the name that it was uploaded with, in UTF-8
    since bigint NOT NULL,              -- when it came last, in milliseconds since 1970
    upload bigint NOT NULL UNIQUE
);
-- Pieces without a file belong to an upload that broke off, and are removed.
CREATE TABLE IF NOT EXISTS sb_blob_piece (
    upload bigint,
    n bigint,
    bytes bytea NOT NULL,
    PRIMARY KEY (upload, n)
);
-- Files are compressed already, as a rule.
ALTER TABLE sb_blob_piece ALTER COLUMN bytes SET STORAGE EXTERNAL;
INSERT INTO sb_leader (registry, secret, version)
VALUES (
    ('x' || right(replace(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint,
    decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'),
    1
)
ON CONFLICT DO NOTHING;
COMMIT;
