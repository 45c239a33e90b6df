/* SPDX-License-Identifier: Apache-2.0 */
/* A shared object that needs no other. */
static int value = 40;

int answer(void)
{
	return value + 2;
}
