# Static libraries only: no programs, tests and manuals; providers inside libcrypto, since a static program loads none.
./Configure linux-x86_64 \
    --prefix="$PREFIX" --libdir=lib --openssldir=/etc/ssl \
    no-shared no-module no-dso no-apps no-docs no-tests \
    enable-ec_nistp_64_gcc_128
make -j"$JOBS" build_libs
make install_dev DESTDIR="$DESTDIR"
