/* link: -lsqlite3 -lm */
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

static int row(void *text, int count, char **values, char **names)
{
	(void)count;
	(void)names;
	snprintf(text, 64, "%s", values[0]);
	return 0;
}

int main(void)
{
	sqlite3 *base;
	char text[64] = "";

	if (sqlite3_open("/tmp/check.db", &base) != SQLITE_OK)
		return 1;
	if (sqlite3_exec(base,
			 "PRAGMA journal_mode=WAL; DROP TABLE IF EXISTS t; CREATE VIRTUAL TABLE t USING fts5(a);"
			 "INSERT INTO t VALUES ('one hen'), ('two ducks'); ", NULL, NULL, NULL) != SQLITE_OK)
		return 2;
	if (sqlite3_exec(base, "SELECT a || ' ' || printf('%.3f', sqrt(2)) || ' ' || json('[1]') FROM t WHERE t MATCH 'ducks'",
			 row, text, NULL) != SQLITE_OK || strcmp(text, "two ducks 1.414 [1]"))
		return 3;
	if (sqlite3_close(base) != SQLITE_OK)
		return 4;
	printf("sqlite3 %s\n", sqlite3_libversion());
	return 0;
}
