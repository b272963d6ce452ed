-- MACs by a key outside of the database (domain/seals.py) of rows that no line of the audit log says in full.
alter table contents add column mac bytea, add column payload_sha256 bytea;
alter table had add column mac bytea;
