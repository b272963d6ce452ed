-- What of a host's services its manifest has no room for, in words; '': all are in it.
alter table hosts add column left_out text not null default '';
