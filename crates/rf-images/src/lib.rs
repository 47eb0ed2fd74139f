//! Images as the server gets them: from a registry, a folder, an archive or a directory, into blobs whose digests were
//! verified. It unpacks nothing: layers go to the warden's unpacker as descriptors.
