-- The token that asked for it, as `Principal.key` says; null before this migration: then created_by says who.
alter table service_changes add column author text;
