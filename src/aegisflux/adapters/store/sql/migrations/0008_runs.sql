-- runs: domain.runs.Runs, the agent's processes that answered as this host. Stored with the heartbeat that it was made of, so that one
-- that is delivered again is compared with nothing twice.
alter table hosts add column runs bytea;
