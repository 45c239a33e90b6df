/* link: -lpcre2-8 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
	int error;
	PCRE2_SIZE at;
	uint32_t jit;
	char version[64];
	const char *subject = "from Köln to Zürich";
	pcre2_code *code = pcre2_compile((PCRE2_SPTR)"(\\p{Lu}\\p{L}+)$", PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
					 &error, &at, NULL);

	if (code == NULL)
		return 1;
	/* What programs do that would like it: ask, and go on without. */
	pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
	pcre2_match_data *data = pcre2_match_data_create_from_pattern(code, NULL);
	if (pcre2_match(code, (PCRE2_SPTR)subject, strlen(subject), 0, 0, data, NULL) != 2)
		return 2;
	if (strcmp(subject + pcre2_get_ovector_pointer(data)[2], "Zürich"))
		return 3;
	pcre2_config(PCRE2_CONFIG_VERSION, version);
	pcre2_config(PCRE2_CONFIG_JIT, &jit);
	printf("pcre2 %s jit %u\n", version, jit);
	return 0;
}
