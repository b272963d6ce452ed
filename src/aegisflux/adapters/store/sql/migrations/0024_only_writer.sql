-- The lock of the one writer of facts, by its number alone: who may take any advisory lock can fill the server's table of
-- locks, which all sessions share (adapters/engines/roles.sql). Who may run it: adapters/store/grants.py.
create function facts_only_writer() returns void language sql security definer as 'select pg_advisory_lock(18407368311391831)';
revoke all on function facts_only_writer() from public;
