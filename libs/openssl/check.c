/* link: -lssl -lcrypto */
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>

/* A certificate of its own making for ``key``. */
static X509 *certificate(EVP_PKEY *key)
{
	X509 *made = X509_new();

	ASN1_INTEGER_set(X509_get_serialNumber(made), 1);
	X509_gmtime_adj(X509_getm_notBefore(made), 0);
	X509_gmtime_adj(X509_getm_notAfter(made), 3600);
	X509_set_pubkey(made, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(made), "CN", MBSTRING_ASC, (unsigned char *)"here", -1, -1, 0);
	X509_set_issuer_name(made, X509_get_subject_name(made));
	return X509_sign(made, key, EVP_sha256()) ? made : NULL;
}

int main(void)
{
	unsigned char digest[EVP_MAX_MD_SIZE], random[16];
	unsigned length;
	BIO *ends[2];
	char text[16] = "";
	EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
	SSL_CTX *contexts[] = {SSL_CTX_new(TLS_server_method()), SSL_CTX_new(TLS_client_method())};
	SSL *server = SSL_new(contexts[0]), *client = SSL_new(contexts[1]);

	if (!EVP_Digest("abc", 3, digest, &length, EVP_sha256(), NULL) || digest[0] != 0xba || digest[31] != 0xad)
		return 1;
	if (RAND_bytes(random, sizeof(random)) != 1 || OSSL_PROVIDER_load(NULL, "legacy") == NULL)
		return 2;
	X509 *made = certificate(key);
	if (made == NULL || SSL_use_certificate(server, made) != 1 || SSL_use_PrivateKey(server, key) != 1)
		return 3;
	/* TLS with ourselves. */
	BIO_new_bio_pair(&ends[0], 0, &ends[1], 0);
	SSL_set_bio(server, ends[0], ends[0]);
	SSL_set_bio(client, ends[1], ends[1]);
	SSL_set_accept_state(server);
	SSL_set_connect_state(client);
	for (int i = 0; i < 10 && !(SSL_is_init_finished(server) && SSL_is_init_finished(client)); i++) {
		SSL_do_handshake(client);
		SSL_do_handshake(server);
	}
	if (SSL_write(client, "hello", 5) != 5 || SSL_read(server, text, sizeof(text)) != 5 || strcmp(text, "hello"))
		return 4;
	printf("%s, %s %s\n", OpenSSL_version(OPENSSL_VERSION), SSL_get_version(client), SSL_get_cipher(client));
	return 0;
}
