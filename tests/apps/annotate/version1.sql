-- A store of version 1: no marks in the log.
BEGIN TRANSACTION;
CREATE TABLE assignments (
	user_id INTEGER NOT NULL, 
	pair_n INTEGER NOT NULL, 
	flipped SMALLINT NOT NULL, 
	state VARCHAR(8) NOT NULL, 
	served FLOAT NOT NULL, 
	expires FLOAT NOT NULL, 
	event_id INTEGER, 
	PRIMARY KEY (user_id, pair_n), 
	FOREIGN KEY(user_id) REFERENCES users (id), 
	FOREIGN KEY(pair_n) REFERENCES pairs (n)
)
 WITHOUT ROWID

;
INSERT INTO "assignments" VALUES(1,1,1,'voted',1700000000.0,1700000900.0,1);
INSERT INTO "assignments" VALUES(2,1,1,'voted',1700000000.0,1700000900.0,2);
CREATE TABLE events (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at FLOAT NOT NULL, 
	user_id INTEGER NOT NULL, 
	pair_n INTEGER NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	token VARCHAR(64) NOT NULL, 
	hallucination SMALLINT, 
	helpfulness SMALLINT, 
	flipped SMALLINT, 
	seconds_browser FLOAT, 
	seconds_server FLOAT, 
	reason TEXT, 
	of_event INTEGER, 
	CONSTRAINT events_token UNIQUE (user_id, token), 
	FOREIGN KEY(user_id) REFERENCES users (id), 
	FOREIGN KEY(pair_n) REFERENCES pairs (n)
);
INSERT INTO "events" VALUES(1,1700000000.0,1,1,'vote','token-of-ann',1,NULL,1,4.0,0.0,NULL,NULL);
INSERT INTO "events" VALUES(2,1700000000.0,2,1,'vote','token-of-bob',1,NULL,1,4.0,0.0,NULL,NULL);
CREATE TABLE invitations (
	code_hash VARCHAR(64) NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	created FLOAT NOT NULL, 
	expires FLOAT NOT NULL, 
	uses_left INTEGER NOT NULL, 
	PRIMARY KEY (code_hash)
);
CREATE TABLE pairs (
	n INTEGER NOT NULL, 
	"key" VARCHAR(32) NOT NULL, 
	id TEXT NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	record TEXT NOT NULL, 
	rank FLOAT NOT NULL, 
	wanted INTEGER NOT NULL, 
	votes INTEGER NOT NULL, 
	open SMALLINT NOT NULL, 
	adjudicated INTEGER, 
	PRIMARY KEY (n), 
	UNIQUE ("key"), 
	UNIQUE (id)
);
INSERT INTO "pairs" VALUES(1,'a069e686120d12fb1878d49f','pair-0','work','{"kind":"preference","id":"pair-0","image":null,"messages":[{"role":"user","content":"What is it?"}],"responses":[{"text":"A red cat.","model":null,"complete":true},{"text":"A red cat and a dog.","model":null,"complete":true}],"choices":{},"annotator":null,"facts":{"captions":[],"rationales":[],"answer":null,"objects":[],"knowledge":[]},"source":null,"split":null,"meta":{}}',0.0,2,2,0,NULL);
INSERT INTO "pairs" VALUES(2,'34dd8ff9f9c011517aaf46d1','pair-1','work','{"kind":"preference","id":"pair-1","image":null,"messages":[{"role":"user","content":"What is it?"}],"responses":[{"text":"A red cat.","model":null,"complete":true},{"text":"A red cat and a dog.","model":null,"complete":true}],"choices":{},"annotator":null,"facts":{"captions":[],"rationales":[],"answer":null,"objects":[],"knowledge":[]},"source":null,"split":null,"meta":{}}',1.0,2,0,1,NULL);
CREATE TABLE schema_version (
	version INTEGER NOT NULL
);
INSERT INTO "schema_version" VALUES(1);
CREATE TABLE sessions (
	token_hash VARCHAR(64) NOT NULL, 
	user_id INTEGER NOT NULL, 
	csrf VARCHAR(64) NOT NULL, 
	created FLOAT NOT NULL, 
	seen FLOAT NOT NULL, 
	PRIMARY KEY (token_hash), 
	FOREIGN KEY(user_id) REFERENCES users (id)
);
CREATE TABLE settings (
	name VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "settings" VALUES('secret','"9fa53b38b236cd8cdba81cee0106aa60"');
INSERT INTO "settings" VALUES('rules','{"lease": 900.0, "qualification": 0, "pass_mark": 0, "gold_every": 0, "limit": 0}');
CREATE TABLE users (
	id INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	password TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	disabled SMALLINT NOT NULL, 
	vote_limit INTEGER, 
	qualification VARCHAR(16), 
	qualification_right INTEGER, 
	votes INTEGER NOT NULL, 
	skips INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "users" VALUES(1,'ann','labeler','scrypt:2:1:1:9GO/eQP9fwlej/Kv3WKytA==:NBJPrCDDXAcjx0OAaGZUuqCTYyXvsfH13b4Ewyi51P8=',1700000000.0,0,NULL,NULL,NULL,1,0);
INSERT INTO "users" VALUES(2,'bob','labeler','scrypt:2:1:1:l1m9QjI7GMOdKuCFZDVm3w==:T1XpOHCCB7yac8BYbUcCyeECo5xVlP2JQNagsR924AE=',1700000000.0,0,NULL,NULL,NULL,1,0);
CREATE INDEX ix_pairs_role ON pairs (role);
CREATE INDEX pairs_open ON pairs (open, rank, n);
CREATE INDEX ix_sessions_user_id ON sessions (user_id);
CREATE INDEX assignments_pair ON assignments (pair_n, state, expires);
CREATE INDEX assignments_lease ON assignments (user_id, state, expires);
CREATE INDEX events_user ON events (user_id, id);
CREATE INDEX ix_events_pair_n ON events (pair_n);
CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',2);
COMMIT;
