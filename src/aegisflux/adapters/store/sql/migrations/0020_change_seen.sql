-- What the service was when a change of it was asked for ({"name", "selectors", "host_labels"}), and why the change waits. Null: it was
-- asked for before this was kept, and is to be asked for again.
alter table service_changes add column seen jsonb;
alter table service_changes add column reason text not null default '';
